import gc
import threading

from ldp_runtime.cuda.collecting import collecting_nothing


def test_the_collector_comes_back_after_the_last_of_those_that_sent_it_away() -> None:
    assert gc.isenabled()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with collecting_nothing():
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    with collecting_nothing():
        assert not gc.isenabled()
        thread.start()
        assert inside.wait(60)
    assert not gc.isenabled()
    leave.set()
    thread.join()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collecting_nothing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
