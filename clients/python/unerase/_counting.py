"""Numbers with their nouns, as messages write them."""


def count_of(number: int, noun: str, many: str = "") -> str:
    """Return a number with its noun, as in "1 cell" and "2,000 cells"; `many` is the plural unless an s makes it."""
    return f"{number:,} {noun if number == 1 else many or f'{noun}s'}"
