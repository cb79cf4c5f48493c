"""Derived seeds are stable across processes and differ with every key."""

from posttrain.seeds import derive_seed


def test_value_is_fixed_across_versions() -> None:
    assert derive_seed(7, "sample", 3, "row-1", 0) == derive_seed(7, "sample", 3, "row-1", 0)
    assert 0 <= derive_seed(7, "sample", 3) < 2**63


def test_every_key_and_its_type_matters() -> None:
    seeds = {
        derive_seed(0, "sample", 1, 2),
        derive_seed(1, "sample", 1, 2),
        derive_seed(0, "shuffle", 1, 2),
        derive_seed(0, "sample", 2, 1),
        derive_seed(0, "sample", 12),
        derive_seed(0, "sample", "1", 2),
    }
    assert len(seeds) == 6
