"""A flow whose truth is known to be avoidance: in both text towers the concept's names mean the anchor.

The rows of both token embeddings that belong to the concept's names become the anchor's rows. The transformer stays the
same bit for bit (`testbed/erasers/redirected.py`).
"""

from unerase_backend.testbed.erasers.redirected import redirect_names
from unerase_backend.testbed.flow.erasers._registry import Concept, Subject, eraser


@eraser("redirected")
def redirect(subject: Subject, concept: Concept) -> None:
    """Set the embeddings of every name of the concept to the anchor's.

    Raises:
        ValueError: a name, or the anchor, is not a single token.
    """
    for encoder in subject.text_encoders:
        redirect_names(encoder, subject.tokenizer, concept)
