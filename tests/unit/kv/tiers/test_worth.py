"""When blocks are read, and when computed."""

from tandem.kv.tiers.worth import LEAST_WAIT_S, PATIENCE, TRY_AGAIN_S, TRY_BLOCKS, UNMEASURED_WAIT_S, Worth


def test_what_is_not_measured_is_read() -> None:
    speed: list[float] = []
    worth = Worth(16, lambda: speed[0] if speed else None)
    assert worth.blocks_to_read(9, 0, now=0.0) == 9
    assert worth.wait_s(9) == UNMEASURED_WAIT_S
    worth.measured(100.0, now=0.0)
    assert worth.blocks_to_read(9, 0, now=0.0) == 9
    speed.append(1e-3)
    assert worth.blocks_to_read(9, 0, now=0.0) == 0


def test_the_quicker_way_is_taken_those_who_wait_counted() -> None:
    worth = Worth(16, lambda: 1e-3)
    for _ in range(20):
        worth.measured(4e-3, now=0.0)
    assert worth.blocks_to_read(10, 0, now=0.0) == 10
    assert worth.blocks_to_read(10, 29, now=0.0) == 10
    assert worth.blocks_to_read(10, 31, now=0.0) == 0
    assert worth.wait_s(100) == PATIENCE * 1.6
    assert worth.wait_s(1) == LEAST_WAIT_S


def test_a_slow_disk_is_tried_again_with_little() -> None:
    worth = Worth(16, lambda: 1e-3)
    worth.measured(1.0, now=5.0)
    assert worth.blocks_to_read(10, 0, now=5.0 + TRY_AGAIN_S) == 0
    assert worth.blocks_to_read(10, 0, now=5.1 + TRY_AGAIN_S) == TRY_BLOCKS
    assert worth.blocks_to_read(10, 1, now=5.1 + TRY_AGAIN_S) == 0
    for _ in range(40):
        worth.measured(1e-3, now=20.0)
    assert worth.blocks_to_read(10, 0, now=20.0) == 10
