"""The garbage collector while modules are imported."""

import gc
import importlib
import sys
import weakref
from collections.abc import Iterator

import pytest

from gptj_batch.importing import uncollected

NEW_MODULE = "colorsys"  # for each of these tests


@pytest.fixture(autouse=True)
def collector_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delitem(sys.modules, NEW_MODULE, raising=False)
    was_enabled = gc.isenabled()
    yield
    (gc.enable if was_enabled else gc.disable)()
    gc.unfreeze()


class Circle:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


def test_nothing_is_collected_meanwhile_and_the_young_are_old_afterwards() -> None:
    gc.enable()
    with uncollected():
        importlib.import_module(NEW_MODULE)
        assert not gc.isenabled()
        made = [[] for _ in range(10_000)]  # type: ignore[var-annotated]
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert gc.get_count()[0] < len(made)
    assert any(one is made for one in gc.get_objects(generation=2))


def test_it_is_enabled_again_where_an_import_fails() -> None:
    gc.enable()
    with pytest.raises(ModuleNotFoundError), uncollected():
        import there_is_no_such_module  # type: ignore[import-not-found]  # noqa: F401
    assert gc.isenabled()


def test_a_collector_that_was_disabled_stays_so() -> None:
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


def test_what_others_froze_stays_frozen() -> None:
    gc.enable()
    gc.freeze()
    frozen = gc.get_freeze_count()
    with uncollected():
        pass
    assert 0 < gc.get_freeze_count() <= frozen  # what is freed leaves too


@pytest.mark.parametrize("imports", [False, True])
def test_what_was_garbage_before_is_freed_as_soon_as_without_it(imports: bool) -> None:
    gc.enable()
    circle = weakref.ref(Circle())
    with uncollected():
        if imports:
            importlib.import_module(NEW_MODULE)
    gc.collect(1)
    assert circle() is None


def test_where_nothing_is_imported_the_young_stay_young() -> None:
    gc.enable()
    with uncollected():
        circle = weakref.ref(Circle())
    gc.collect(1)
    assert circle() is None
