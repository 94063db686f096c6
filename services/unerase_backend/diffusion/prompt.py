"""A prompt as the text encoders of a model read it."""

from dataclasses import dataclass

from unerase_backend.diffusion.text_reader import Frame


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt: a frame for each text encoder, in the order of the backbone's `readers`."""

    frames: tuple[Frame, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The token ids that the first text encoder reads, with start, end and padding."""
        return self.frames[0].ids

    @property
    def learned_at(self) -> tuple[int, ...]:
        """The first position of each occurrence of the learned word among them."""
        return self.frames[0].learned_at

    @property
    def empty(self) -> bool:
        """Whether it has no words, so that no text encoder reads more than start, end and padding."""
        return all(frame.words == 0 for frame in self.frames)

    @property
    def truncated(self) -> bool:
        """Whether some text encoder does not read all of it."""
        return any(frame.truncated for frame in self.frames)
