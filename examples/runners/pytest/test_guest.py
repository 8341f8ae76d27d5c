"""`kickvm exec -- pytest` runs these tests in a guest. KICKVM_KERNEL is its kernel."""

from pathlib import Path


def test_this_is_a_guest_of_kickvm():
    assert Path("/.kickvm").is_dir()
