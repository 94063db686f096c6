"""The checks of questions to judges that need no judge."""

from collections.abc import Iterator, Sequence

from unerase.internal.v1alpha1.classification_pb2 import ClassifyRequest
from unerase.internal.v1alpha1.trajectories_pb2 import Question
from unerase_backend.runtime.bounds import most_items
from unerase_backend.runtime.errors import FieldViolation

MAX_QUESTIONS = most_items(ClassifyRequest, "questions")
MAX_TEXTS = most_items(Question, "labels")
MAX_TEXT_LENGTH = 1000


def question_violations(questions: Sequence[Question], *, fewest: int = 0) -> Iterator[FieldViolation]:
    """Yield what is wrong with the `questions` of a request; there must be at least `fewest`."""
    if not fewest <= len(questions) <= MAX_QUESTIONS:
        yield FieldViolation("questions", f"must be {fewest} to {MAX_QUESTIONS} questions, not {len(questions)}")
    for index, question in enumerate(questions[:MAX_QUESTIONS]):
        yield from problems(question, f"questions[{index}]")


def problems(question: Question, field: str) -> Iterator[FieldViolation]:
    """Yield what is wrong with one question; `field` is its path in the request."""
    if not question.judge:
        yield FieldViolation(f"{field}.judge", "must name a judge")
    if not question.labels:
        yield FieldViolation(f"{field}.labels", "must hold the labels that mean the concept")
    for name, texts in (("labels", question.labels), ("alternatives", question.alternatives)):
        if len(texts) > MAX_TEXTS:
            yield FieldViolation(f"{field}.{name}", f"must be at most {MAX_TEXTS}, not {len(texts)}")
        for place, text in enumerate(texts[:MAX_TEXTS]):
            if not 1 <= len(text) <= MAX_TEXT_LENGTH:
                yield FieldViolation(f"{field}.{name}[{place}]", f"must have 1 to {MAX_TEXT_LENGTH} characters")
