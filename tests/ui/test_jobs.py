"""The queue: one job at a time, places that are freed, results that are bounded."""

from __future__ import annotations

import threading

import pytest
import torch

from scoresde.runs.instrument import NetworkCall
from scoresde.ui.jobs import Busy, Job, Jobs, NotFound


@pytest.fixture
def jobs(tmp_path):
    with Jobs(tmp_path / "jobs", waiting=3, kept=4) as found:
        yield found


class Held:
    """Work that begins, and goes on when it is let go or stopped."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Event(), threading.Event()

    def __call__(self, job: Job) -> dict[str, int]:
        self.begun.set()
        while not job.stopping() and not self.free.wait(0.01):
            pass
        (job.folder / "partial.txt").write_text("kept")
        return {"done": 1}


@pytest.fixture
def held(jobs):
    """A job that the worker is at."""
    work = Held()
    work.job = jobs.submit("held", work, "me")
    work.begun.wait(5)
    return work


def test_jobs_are_done_in_turn_and_leave_their_record(jobs):
    order: list[int] = []

    def work(k, job):
        order.append(k)
        return {"k": k}

    found = [jobs.submit("work", lambda job, k=k: work(k, job)) for k in range(3)]
    assert [jobs.wait(job, 5).told()["k"] for job in found] == [0, 1, 2]
    assert order == [0, 1, 2]
    assert all(job.state == "done" and job.share == 1 for job in found)
    assert len({job.id for job in found}) == 3


def test_a_full_queue_refuses_and_a_cancelled_job_frees_its_place(jobs, held):
    waiting = [jobs.submit("work", lambda job: {}) for _ in range(3)]
    assert [jobs.place(job) for job in waiting] == [1, 2, 3]
    with pytest.raises(Busy, match="busy: 3 jobs wait"):
        jobs.submit("work", lambda job: {})
    jobs.cancel(waiting[0])
    assert waiting[0].state == "stopped"
    another = jobs.submit("work", lambda job: {"last": True})
    assert [jobs.place(job) for job in (*waiting, another)] == [0, 1, 2, 3]
    held.free.set()
    assert jobs.wait(another, 5).told()["last"]


def test_a_running_job_that_is_cancelled_keeps_what_there_is(jobs, held):
    jobs.cancel(held.job)
    jobs.wait(held.job, 5)
    assert (held.job.state, held.job.record) == ("stopped", {"done": 1})
    assert (held.job.folder / "partial.txt").read_text() == "kept"


def test_work_that_does_not_ask_is_stopped_at_its_next_report(jobs, held):
    reported: list[int] = []

    def work(job):
        with job.stoppable(10, "steps") as advance:
            for n in range(10):
                advance(1)
                reported.append(n)
                if n == 3:
                    jobs.cancel(job)

    job = jobs.submit("work", work)
    held.free.set()
    jobs.wait(job, 5)
    assert (job.state, job.error, reported) == ("stopped", "", [0, 1, 2, 3])
    assert job.told()["share"] == 0.4


def test_the_jobs_of_an_owner_are_stopped_and_those_of_others_go_on(jobs, held):
    mine = jobs.submit("other kind", lambda job: {}, "me")
    yours = jobs.submit("held", lambda job: {"yours": 1}, "you")
    jobs.cancel_all("me", "held")
    jobs.wait(held.job, 5)
    assert jobs.wait(mine, 5).state == "done"
    assert jobs.wait(yours, 5).state == "done"


def test_an_error_is_one_line_and_the_worker_goes_on(jobs):
    def fails(job):
        raise ValueError("seeds:\n  too many")

    def breaks(job):
        raise KeyError("x")

    found = [jobs.submit("work", work) for work in (fails, breaks, lambda job: {})]
    assert [jobs.wait(job, 5).error for job in found] == ["seeds: too many", "KeyError: 'x'", ""]
    assert [job.state for job in found] == ["failed", "failed", "done"]


def test_the_oldest_results_are_forgotten_with_their_files(jobs):
    done = [jobs.wait(jobs.submit("work", lambda job: {}), 5) for _ in range(9)]
    with pytest.raises(NotFound, match="forgotten"):
        jobs.get(done[4].id)
    assert jobs.get(done[5].id) is done[5]
    left = [job.folder.exists() for job in done]
    assert left == [False] * 5 + [True] * 4


def test_jobs_that_are_stopped_before_they_begin_displace_no_result(jobs):
    done = jobs.wait(jobs.submit("work", lambda job: {}), 5)
    work = Held()
    holding = jobs.submit("held", work)
    work.begun.wait(5)
    stopped = [jobs.submit("work", lambda job: {}) for _ in range(3)]
    for _ in range(3):
        for job in stopped:
            jobs.cancel(job)
        last, stopped = stopped[-1], [jobs.submit("work", lambda job: {}) for _ in range(3)]
    assert jobs.get(done.id) is done
    assert done.folder.exists()
    assert jobs.get(last.id).state == "stopped"
    assert len(jobs._jobs) == 1 + 1 + 3 + 4  # done, held, waiting, and the last that were stopped
    jobs.cancel(holding)


def test_the_share_of_a_drawing_is_that_of_its_network_calls(tmp_path):
    job = Job("id", "sample", "", tmp_path, state="running", _begun=0.0)
    job.expect(samples=6, calls=10)
    shares = []
    for first, rows in ((0, 4), (4, 2)):
        for number in range(1, 11):
            x = torch.zeros(rows, 1)
            job.look(first, NetworkCall(number, torch.zeros(1), x, x))
            shares.append(job.share)
    expected = [4 * k / 60 for k in range(1, 11)] + [(40 + 2 * k) / 60 for k in range(1, 11)]
    assert shares == pytest.approx(expected)
    assert job.told()["left"] == 0


def test_previews_take_no_more_than_a_tenth_of_the_time(tmp_path, monkeypatch):
    """By a clock that only previews and network calls move."""
    clock, previews = [0.0], []
    monkeypatch.setattr("scoresde.ui.jobs.time.monotonic", lambda: clock[0])

    def preview(first, call):
        clock[0] += 1.0
        previews.append(call.number)

    job, x = Job("id", "sample", "", tmp_path, preview=preview), torch.zeros(1, 1)
    for number in range(1, 1001):
        clock[0] += 0.1
        job.look(0, NetworkCall(number, torch.zeros(1), x, x))
    assert previews[0] == 1
    assert len(previews) <= 0.1 * clock[0] + 1


def test_the_end_stops_what_runs_and_what_waits(tmp_path):
    work = Held()
    with Jobs(tmp_path) as jobs:
        running, waiting = jobs.submit("held", work), jobs.submit("work", lambda job: {})
        work.begun.wait(5)
    assert (running.state, waiting.state) == ("stopped", "stopped")
    with pytest.raises(Busy):
        jobs.submit("work", lambda job: {})
