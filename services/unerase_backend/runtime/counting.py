"""Numbers with their nouns, as messages and reports write them."""


def counted(number: int, noun: str, many: str = "") -> str:
    """Return a number with its noun, as in "1 core" and "2,000 cores"; `many` is the plural unless an s makes it."""
    return f"{number:,} {noun if number == 1 else many or f'{noun}s'}"
