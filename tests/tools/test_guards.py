"""The table of guards counts what is shown and what is withheld."""

from tools.guards import counted
from unerase.internal.v1alpha1.trajectories_pb2 import Sample
from unerase.v1.types_pb2 import SAMPLE_STATUS_SCORED, SAMPLE_STATUS_WITHHELD, Judgement


def test_withheld_pictures_are_counted_apart() -> None:
    shown = [Sample(status=SAMPLE_STATUS_SCORED, judgements=[Judgement(detected=each)]) for each in (True, False)]
    assert counted(shown) == "1 of 2"
    assert counted([*shown, Sample(status=SAMPLE_STATUS_WITHHELD)]) == "1 of 3 (1 withheld)"
