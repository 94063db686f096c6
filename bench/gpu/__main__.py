"""`python -m bench.gpu [--model NAME] [--tiny] [--dtype NAME] [--out FILE]`: what one GPU makes of real size.

The architecture is Stable Diffusion 1.4's, or with `--model` that of another (`bench.gpu.sizes`); the weights are
random. It takes at most eight minutes, whatever the card: each part has its seconds (`bench.gpu.parts.PARTS`), and
makes fewer calls where these are few. It needs no Ray and no network. Each part prints a line; the JSON at FILE holds
them with the card's name and the libraries' versions, and the cost of a whole standard audit (`bench.gpu.cost`).

`--tiny` runs the same program on the CPU with a tiny architecture of the family; its figures mean nothing.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.gpu.cost import cost, planned
from bench.gpu.models import judge_of, random_model
from bench.gpu.parts import PARTS, Rig
from bench.gpu.sizes import SIZES, TINY_SIZES
from bench.gpu.timing import Clock, peak_gb
from unerase_backend.diffusion.profile import device_class, library_versions
from unerase_backend.runtime.deployment import prepare_gpu

SECONDS = 450.0
"""Of all parts; loading the libraries and the model comes before."""
TINY_SECONDS = 2.0
"""Of all parts with a tiny architecture; a busy machine may take longer."""
TINY_LIMIT = 600.0
NO_TIME: dict[str, Any] = {"error": "the parts before it took all of the time"}


def main(arguments: Sequence[str]) -> int:
    """Measure every part; return 1 if one fails or bits depend on neighbours, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/bench-gpu.json"))
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument("--model", choices=tuple(SIZES), default="sd-1.4")
    parser.add_argument("--tiny", action="store_true", help="a tiny architecture on the CPU, to try the program")
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("there is no GPU; --tiny tries the program on the CPU", file=sys.stderr)
        return 2
    transformers.logging.disable_progress_bar()
    device = torch.device("cpu" if options.tiny else "cuda")
    if not options.tiny:
        prepare_gpu(0.0)
    sizes, seconds = (TINY_SIZES, TINY_SECONDS) if options.tiny else (SIZES, SECONDS)
    size = sizes[options.model]
    clock, of_parts = Clock(TINY_LIMIT if options.tiny else seconds), sum(share for _, share in PARTS.values())
    with tempfile.TemporaryDirectory() as folder:
        rig = Rig(random_model(size, device, getattr(torch, options.dtype)), size, judge_of(size, Path(folder), device))
    results: dict[str, Any] = {
        "device": device_class(device),
        "versions": library_versions(),
        "model": size.name,
        "dtype": options.dtype,
    }
    for name, (part, of_share) in PARTS.items():
        share = clock.share(of_share / of_parts * seconds)
        results[name] = _measured(name, lambda: part(rig, share) if share else NO_TIME, device)  # noqa: B023 - at once
    results["standard_audit"] = _measured("standard_audit", lambda: cost(rig, planned()), device)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    failed = [name for name in [*PARTS, "standard_audit"] if "error" in results[name]]
    return int(bool(failed) or not results["neighbours"]["same_bits"])


def _measured(name: str, measure: Callable[[], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    begun = time.monotonic()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        found = measure()
    except Exception as error:
        # The other parts are worth having, and a card is not often at hand.
        found = {"error": f"{type(error).__name__}: {error}"[:500]}
    if (last := peak_gb(device)) is not None:
        found["peak_gb"] = round(max([last, *_peaks(found)]), 2)
    print(f"{name} ({time.monotonic() - begun:.0f} s): {json.dumps(found)}", flush=True)
    return found


def _peaks(found: Mapping[str, Any]) -> Iterator[float]:
    """Yield the peaks of a part's calls, each of which was counted anew."""
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _peaks(value)
        elif name == "peak_gb":
            yield value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
