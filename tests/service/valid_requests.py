"""A valid request of every method, as many fields set as can be: what the fuzzing spoils."""

import time
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from unerase import Client
from unerase.internal.v1alpha1 import attack_pb2, classification_pb2, generation_pb2, probing_pb2
from unerase.internal.v1alpha1.trajectories_pb2 import (
    ClassifierGuidance,
    Conditioning,
    Inpainting,
    LearnedPrompt,
    Question,
    Resumption,
    Target,
    TokenIds,
    Trajectory,
    View,
)
from unerase.internal.v1alpha1.units_pb2 import Unit
from unerase.v1 import audits_pb2, campaigns_pb2, comparisons_pb2, models_pb2, server_pb2
from unerase.v1.gates_pb2 import Gate
from unerase.v1.types_pb2 import CONCEPT_KIND_OBJECT, MODEL_ROLE_SUBJECT, Case, Concept, JudgeLabels, Tensor
from unerase.v1.verdicts_pb2 import CONCLUSION_AVOIDED
from unerase_backend.coordinator.api.paging import kind_of, token_of
from unerase_backend.evaluation.parameters import parameters_struct

from .conftest import small_spec

MODEL = "testbed/reference"


def valid_requests(client: Client, known: dict[str, str]) -> dict[str, Message]:
    """Return them by the method's name; `known` are an audit, a campaign and what else they may name."""
    panel = {field: Question(judge=f"testbed/{name}", labels=["hourglass"]) for field, name in _PANEL.items()}
    panel["selector"].labels[:] = ["a picture of a hourglass"]
    panel["selector"].alternatives.append("a picture of a circle")
    targets = [Target(concept=client.concept(name), **panel) for name in ("hourglass", "circle")]
    return {
        **_of_audits(known),
        **_of_campaigns(known),
        **_of_the_catalogue(),
        **_of_registered_models(known),
        "GetServerInfo": server_pb2.GetServerInfoRequest(),
        **_of_generation(known, panel["judge"]),
        **_of_units(*targets),
        "Classify": classification_pb2.ClassifyRequest(
            picture_digests=[known["digest"]],
            questions=list(panel.values()),
            view=View(crop_share=0.5),
            embedding_judge="testbed/clip",
        ),
    }


def _of_audits(known: dict[str, str]) -> dict[str, Message]:
    return {
        "CreateAudit": audits_pb2.CreateAuditRequest(request_id="fuzz", spec=_whole_spec(), labels=_LABELS),
        "GetAudit": audits_pb2.GetAuditRequest(id=known["audit"]),
        "ListAudits": audits_pb2.ListAuditsRequest(
            page_size=3,
            page_token=token_of(kind_of("audits", _FILTER, "end_time desc"), str(time.time_ns()), known["audit"]),
            view=audits_pb2.AUDIT_VIEW_FULL,
            filter=_FILTER,
            order_by="end_time desc",
        ),
        "WatchAudit": audits_pb2.WatchAuditRequest(id=known["audit"], after_sequence=1),
        "CancelAudit": audits_pb2.CancelAuditRequest(id=known["audit"]),
        # The audit stays for the other tests: its owner asks for it to go with one letter more.
        "DeleteAudit": audits_pb2.DeleteAuditRequest(id=known["audit"] + "0"),
        "GetReport": audits_pb2.GetReportRequest(id=known["audit"], format=audits_pb2.REPORT_FORMAT_HTML),
        "ReadArtifact": audits_pb2.ReadArtifactRequest(id=known["audit"], digest=known["digest"]),
        "ListEvaluations": audits_pb2.ListEvaluationsRequest(),
    }


def _of_campaigns(known: dict[str, str]) -> dict[str, Message]:
    campaign = known["campaign"]
    spec = campaign_spec()
    spec.subject_filter = 'name = "testbed/esd-x"'
    spec.gate.CopyFrom(_gate(campaign))
    spec.compared_with, spec.window, spec.sequential = campaign, 2, False
    cells = "state = SUCCEEDED AND attempts > 0"
    return {
        "CreateCampaign": campaigns_pb2.CreateCampaignRequest(request_id="fuzz", spec=spec, labels=_LABELS),
        "GetCampaign": campaigns_pb2.GetCampaignRequest(id=campaign),
        "ListCampaigns": campaigns_pb2.ListCampaignsRequest(
            page_size=3,
            page_token=token_of(kind_of("campaigns", _FILTER), str(time.time_ns()), campaign),
            filter=_FILTER,
        ),
        "ListCells": campaigns_pb2.ListCellsRequest(
            id=campaign, page_size=3, page_token=token_of(kind_of("cells", campaign, cells), "0"), filter=cells
        ),
        "WatchCampaign": campaigns_pb2.WatchCampaignRequest(id=campaign, after_sequence=1),
        "CancelCampaign": campaigns_pb2.CancelCampaignRequest(id=campaign),
        "RetryCampaign": campaigns_pb2.RetryCampaignRequest(id=campaign),
        # As with the audit, the campaign stays for the other tests.
        "DeleteCampaign": campaigns_pb2.DeleteCampaignRequest(id=campaign + "0"),
        "GetCampaignReport": campaigns_pb2.GetCampaignReportRequest(
            id=campaign, format=campaigns_pb2.CAMPAIGN_REPORT_FORMAT_HTML
        ),
        "Compare": comparisons_pb2.CompareRequest(
            campaigns=comparisons_pb2.CampaignPair(first=campaign, second=campaign, changed_only=True)
        ),
        "EvaluateGate": campaigns_pb2.EvaluateGateRequest(id=campaign, gate=_gate(campaign)),
    }


def _of_registered_models(known: dict[str, str]) -> dict[str, Message]:
    model = models_pb2.NewModel(name="own/fuzz", labels=_LABELS)
    model.entry.update(entry(known["folder"]))
    return {
        "RegisterModel": models_pb2.RegisterModelRequest(request_id="fuzz", model=model),
        "ImportStatus": models_pb2.ImportStatusRequest(name=known["model"]),
        "DeleteModel": models_pb2.DeleteModelRequest(name=known["model"] + "0"),
    }


def _of_the_catalogue() -> dict[str, Message]:
    models = 'labels.team = "fuzz" OR base = "testbed/reference"'
    return {
        "ListModels": models_pb2.ListModelsRequest(
            page_size=2,
            page_token=token_of(kind_of("models", models, "name desc"), "testbed/z"),
            filter=models,
            order_by="name desc",
        ),
        "GetModel": models_pb2.GetModelRequest(name=MODEL),
        "CheckModel": models_pb2.CheckModelRequest(name=MODEL),
        "ListBackbones": models_pb2.ListBackbonesRequest(),
        "ListConcepts": models_pb2.ListConceptsRequest(page_size=2, page_token=token_of("concepts", "a")),
        "CreateConcept": models_pb2.CreateConceptRequest(concept=new_concept()),
        "GetConcept": models_pb2.GetConceptRequest(name="hourglass"),
        "DeleteConcept": models_pb2.DeleteConceptRequest(name="hourglass"),
    }


def _of_generation(known: dict[str, str], question: Question) -> dict[str, Message]:
    return {
        "Generate": generation_pb2.GenerateRequest(
            model=MODEL,
            trajectories=_trajectories(known["concept"]),
            questions=[question],
            pictures=True,
            latents=True,
            changes=[
                generation_pb2.ModelChange(interpolation=generation_pb2.Interpolation(model="testbed/uce", share=0.5)),
            ],
        ),
        "Encode": generation_pb2.EncodeRequest(model=MODEL, prompts=["a hourglass", "a circle"]),
        "MeasureDenoising": generation_pb2.MeasureDenoisingRequest(
            model=MODEL,
            picture_digests=[known["concept"]],
            prompts=["", "a hourglass"],
            timesteps=[1, 500],
            noise_seed=1,
        ),
        "DescribeGeneration": generation_pb2.DescribeGenerationRequest(),
        "DescribeClassification": classification_pb2.DescribeClassificationRequest(),
    }


def _trajectories(picture_digest: str) -> list[Trajectory]:
    """One of each kind of conditioning, and each with another of what a trajectory may hold."""
    conditionings = [
        Conditioning(text="a hourglass"),
        Conditioning(token_ids=TokenIds(ids=[1, 2, 3])),
        Conditioning(
            learned=LearnedPrompt(
                text="a picture of a <new>",
                placeholder="<new>",
                embedding=Tensor(shape=[1, 64], values=b"\x00" * 256),
            )
        ),
        Conditioning(embedding=Tensor(shape=[24, 64], values=b"\x00" * 4 * 24 * 64)),
    ]
    trajectories = [
        Trajectory(
            conditioning=conditioning, guidance_scale=3.0, latent_seed=1, noise_seed=2, steps=3, variance_scale=1.0
        )
        for conditioning in conditionings
    ]
    trajectories[0].eta = 1.0
    trajectories[1].inpainting.CopyFrom(Inpainting(picture_digest=picture_digest, mask_share=0.5))
    trajectories[2].resumption.CopyFrom(
        Resumption(latents=Tensor(shape=[4, 8, 8], values=b"\x00" * 4 * 4 * 64), step=1)
    )
    trajectories[2].stop_step = 2
    trajectories[3].classifier_guidance.CopyFrom(ClassifierGuidance(classifier_digest="0" * 64, scale=1.0))
    return trajectories


def _of_units(target: Target, other: Target) -> dict[str, Message]:
    unit = Unit(
        id="standard-prompt/subject/0",
        evaluation="standard-prompt",
        role=MODEL_ROLE_SUBJECT,
        model="testbed/uce",
        reference=MODEL,
        target=target,
        others=[other],
        cases=[
            Case(index=0, prompt="a hourglass", latent_seed=1, held_out_prompt="one hourglass", held_out_latent_seed=2)
        ],
        parameters=parameters_struct({}),
        steps=3,
        guidance_scale=3.0,
        seed_base=5,
    )
    attacked = Unit()
    attacked.CopyFrom(unit)
    attacked.id, attacked.evaluation = "textual-inversion/subject/0", "textual-inversion"
    attacked.parameters.CopyFrom(parameters_struct({"steps": 1}))
    return {
        "Probe": probing_pb2.ProbeRequest(unit=unit),
        "ListProbes": probing_pb2.ListProbesRequest(),
        "Attack": attack_pb2.AttackRequest(unit=attacked),
        "ListAttacks": attack_pb2.ListAttacksRequest(),
    }


_LABELS = {"team": "fuzz"}
_FILTER = 'state = SUCCEEDED OR labels.team = "fuzz"'
_PANEL = {"selector": "clip", "judge": "judge", "second_judge": "second-judge"}


def _whole_spec() -> audits_pb2.AuditSpec:
    spec = small_spec(cases=1, steps=2)
    spec.reference, spec.control = MODEL, "testbed/never"
    spec.selector, spec.judge, spec.second_judge = (f"testbed/{name}" for name in _PANEL.values())
    spec.guidance_scale = 3.0
    spec.tolerances.excess = 0.1
    return spec


def campaign_spec() -> campaigns_pb2.CampaignSpec:
    """Return a campaign of one cell."""
    template = _whole_spec()
    template.ClearField("subject")
    template.ClearField("concept")
    return campaigns_pb2.CampaignSpec(subjects=["testbed/uce"], concepts=["hourglass"], template=template)


def _gate(campaign: str) -> Gate:
    return Gate(
        worst_conclusion=CONCLUSION_AVOIDED,
        excess=0.1,
        least_destruction=0.5,
        general_damage=0.5,
        interference=0.1,
        no_worse_than=campaign,
        alpha=0.1,
        undecided=1,
        concepts=["hourglass"],
    )


def entry(folder: Path | str) -> dict[str, Any]:
    """Return a model as an entry of a catalogue file."""
    return {"pipeline": str(folder), "resolution": 32, "steps": 3, "guidance_scale": 3.0, "never_learned": ["heart"]}


def new_concept() -> models_pb2.NewConcept:
    concept = Concept(
        name="fuzz/concept",
        kind=CONCEPT_KIND_OBJECT,
        names=["hourglass"],
        prompts=["a {concept}"],
        held_out_prompts=["one {concept}"],
        labels=[JudgeLabels(judge="testbed/judge", labels=["hourglass"])],
        control="testbed/never",
        initial_token="shape",
    )
    return models_pb2.NewConcept(request_id="fuzz", concept=concept)
