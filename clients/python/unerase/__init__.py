"""unerase tells whether a concept was really erased from a text-to-image diffusion model, or only hidden.

    from unerase import AuditSpec, Battery, Client

    with Client("127.0.0.1:50051") as client:
        spec = AuditSpec(subject="testbed/uce", concept="hourglass", battery=Battery(preset="quick"))
        print(client.audit(spec).verdict.statement)

This package is the client; it does not need the backend. The messages are those of the contract `unerase.v1`.
"""

from unerase._aio import AsyncClient
from unerase._campaign_file import CampaignFile, read_campaign
from unerase._client import Client
from unerase._contract import NewerContractWarning
from unerase._contract_number import CONTRACT
from unerase._errors import FieldViolation, UneraseError
from unerase._gate_file import read_gate
from unerase._model_file import ModelEntry, read_models
from unerase._prompt_list import PromptList, read_prompts
from unerase._prompt_pack import read_pack
from unerase._settings import DEFAULT_ADDRESS, ClientSettings, KeepAliveConfig, RetryConfig, TLSConfig
from unerase.v1.audits_pb2 import (
    Audit,
    AuditCost,
    AuditEvent,
    AuditSpec,
    AuditState,
    AuditView,
    Battery,
    BatteryPreset,
    EvaluationCost,
    Report,
    ReportFormat,
    Tolerances,
)
from unerase.v1.campaigns_pb2 import (
    Campaign,
    CampaignEvent,
    CampaignReport,
    CampaignReportFormat,
    CampaignSpec,
    CampaignState,
    Cell,
    CellState,
)
from unerase.v1.comparisons_pb2 import (
    AuditComparison,
    CampaignComparison,
    CellComparison,
    Change,
    EvaluationComparison,
)
from unerase.v1.gates_pb2 import Gate, GateFinding, GateOutcome, GateResult
from unerase.v1.models_pb2 import Model, ModelRegistration, RegistrationState
from unerase.v1.server_pb2 import ServerInfo
from unerase.v1.types_pb2 import (
    Concept,
    ConceptKind,
    ControlKind,
    DecidedBy,
    EvaluationClass,
    EvaluationDescription,
    EvaluationRequest,
    FixedPrompt,
    JudgeLabels,
    ModelRole,
    Observation,
    PromptKind,
    PromptPack,
    PromptSource,
)
from unerase.v1.verdicts_pb2 import Conclusion, EvaluationResult, Outcome, Verdict

__all__ = [
    "CONTRACT",
    "DEFAULT_ADDRESS",
    "AsyncClient",
    "Audit",
    "AuditComparison",
    "AuditCost",
    "AuditEvent",
    "AuditSpec",
    "AuditState",
    "AuditView",
    "Battery",
    "BatteryPreset",
    "Campaign",
    "CampaignComparison",
    "CampaignEvent",
    "CampaignFile",
    "CampaignReport",
    "CampaignReportFormat",
    "CampaignSpec",
    "CampaignState",
    "Cell",
    "CellComparison",
    "CellState",
    "Change",
    "Client",
    "ClientSettings",
    "Concept",
    "ConceptKind",
    "Conclusion",
    "ControlKind",
    "DecidedBy",
    "EvaluationClass",
    "EvaluationComparison",
    "EvaluationCost",
    "EvaluationDescription",
    "EvaluationRequest",
    "EvaluationResult",
    "FieldViolation",
    "FixedPrompt",
    "Gate",
    "GateFinding",
    "GateOutcome",
    "GateResult",
    "JudgeLabels",
    "KeepAliveConfig",
    "Model",
    "ModelEntry",
    "ModelRegistration",
    "ModelRole",
    "NewerContractWarning",
    "Observation",
    "Outcome",
    "PromptKind",
    "PromptList",
    "PromptPack",
    "PromptSource",
    "RegistrationState",
    "Report",
    "ReportFormat",
    "RetryConfig",
    "ServerInfo",
    "TLSConfig",
    "Tolerances",
    "UneraseError",
    "Verdict",
    "read_campaign",
    "read_gate",
    "read_models",
    "read_pack",
    "read_prompts",
]
