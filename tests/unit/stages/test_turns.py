import threading
import time

from gptj_batch.stages.turns import Turns


def test_many_are_inside_together_and_one_alone() -> None:
    turns, together, log = Turns(), threading.Barrier(2, timeout=10), []

    def with_others() -> None:
        with turns.together():
            together.wait()
            log.append("together")

    def by_itself() -> None:
        with turns.alone():
            log.append("in")
            time.sleep(0.05)
            log.append("out")

    threads = [threading.Thread(target=with_others) for _ in range(2)]
    threads += [threading.Thread(target=by_itself) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    rest = [word for word in log if word != "together"]
    assert rest == ["in", "out"] * 3 and len(log) == 8
    assert [log[place + 1] for place, word in enumerate(log) if word == "in"] == ["out"] * 3


def test_who_wants_to_be_alone_goes_before_those_who_come_later() -> None:
    turns, log = Turns(), []

    def enter(name: str, alone: bool) -> None:
        with turns.alone() if alone else turns.together():
            log.append(name)

    with turns.together():
        waiting = threading.Thread(target=enter, args=("alone", True))
        waiting.start()
        time.sleep(0.1)
        late = threading.Thread(target=enter, args=("late", False))
        late.start()
        time.sleep(0.1)
        assert log == []
    waiting.join(10)
    late.join(10)
    assert log == ["alone", "late"]
