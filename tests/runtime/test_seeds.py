from hypothesis import given
from hypothesis import strategies as st

from unerase_backend.runtime.seeds import derive_seed

NAMES = st.lists(st.one_of(st.integers(0, 1000), st.text("abc", max_size=3)), min_size=1, max_size=4)


@given(st.integers(0, 2**64 - 1), NAMES)
def test_a_seed_fits_into_63_bits_and_stays(base: int, names: list[int | str]) -> None:
    seed = derive_seed(base, *names)
    assert 0 <= seed < 2**63
    assert derive_seed(base, *names) == seed


@given(st.integers(0, 2**64 - 1), NAMES, NAMES)
def test_two_purposes_never_share_a_seed(base: int, one: list[int | str], other: list[int | str]) -> None:
    same = [str(name) for name in one] == [str(name) for name in other]
    assert (derive_seed(base, *one) == derive_seed(base, *other)) == same


def test_seeds_are_those_of_earlier_releases() -> None:
    # The report's content of an old audit can be made again only if these stay.
    assert derive_seed(0, "latent", 0) == 1639340016884072605
    assert derive_seed(2**64 - 1, "noise", 3, "x") == 1290265790313886559
