"""Models in one process as a base and differences: less memory, the same bits."""

import torch

from unerase_backend.catalogue import Catalogue
from unerase_backend.diffusion.loading import load_model
from unerase_backend.diffusion.model import DiffusionModel
from unerase_backend.diffusion.sharing import share_weights

PARTS = ("unet", "text_encoder", "vae")


def load(name: str) -> DiffusionModel:
    return load_model(Catalogue.load(), name, torch.device("cpu"), torch.float32)


def weight_bytes(*models: DiffusionModel) -> int:
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for model in models
        for module in model.backbone.modules.values()
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values())


def test_a_partial_change_takes_the_memory_of_what_it_changes() -> None:
    reference, subject = load("testbed/reference"), load("testbed/uce")
    before = {name: tensor.clone() for name, tensor in subject.denoiser.state_dict().items()}
    alone = weight_bytes(reference)
    freed = share_weights(subject, [reference])
    of_reference = reference.denoiser.state_dict()
    changed = [
        name for name, tensor in subject.denoiser.state_dict().items() if not torch.equal(tensor, of_reference[name])
    ]
    differing = sum(before[name].numel() * 4 for name in changed)
    assert changed
    assert weight_bytes(reference, subject) == alone + differing
    assert freed == alone - differing
    assert differing < 0.1 * alone
    assert all(torch.equal(tensor, before[name]) for name, tensor in subject.denoiser.state_dict().items())


def test_sharing_again_frees_nothing_and_a_third_model_shares_with_any() -> None:
    reference, subject, control = load("testbed/reference"), load("testbed/redirected"), load("testbed/never")
    share_weights(subject, [reference])
    assert share_weights(subject, [reference]) == 0
    share_weights(control, [subject, reference])
    assert control.vae.state_dict()["decoder.conv_in.weight"].data_ptr() == (
        reference.vae.state_dict()["decoder.conv_in.weight"].data_ptr()
    )


def test_zeros_of_different_sign_and_other_layouts_are_not_shared() -> None:
    one, other = load("testbed/reference"), load("testbed/reference")
    with torch.no_grad():
        one.denoiser.conv_out.bias[0], other.denoiser.conv_out.bias[0] = 0.0, -0.0
    other.denoiser.conv_in.weight.data = other.denoiser.conv_in.weight.data.contiguous()
    share_weights(other, [one])
    assert torch.signbit(other.denoiser.conv_out.bias[0])
    assert other.denoiser.conv_in.weight.data_ptr() != one.denoiser.conv_in.weight.data_ptr()
