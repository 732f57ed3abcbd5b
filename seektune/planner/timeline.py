"""Simulates a pipeline step action by action: when each process works, and its bubble."""

from collections.abc import Mapping
from dataclasses import dataclass

from seektune.parallel.layer_split import Action
from seektune.planner.job import Order


@dataclass(frozen=True)
class Span:
    """An action of one process; seconds since the start of the step."""

    process: int
    kind: str
    stage: int
    micro_batch: int
    begin: float
    end: float


@dataclass(frozen=True)
class StageTime:
    """Seconds of a stage for one micro-batch."""

    forward: float
    backward_input: float
    backward_weights: float
    send: float
    """To the next stage, or its gradient back."""

    def of(self, kind: str) -> float:
        """Seconds of an action."""
        return {
            "F": self.forward,
            "B": self.backward_input + self.backward_weights,
            "I": self.backward_input,
            "W": self.backward_weights,
        }[kind]


def simulate(order: Order, times: Mapping[int, StageTime]) -> list[Span]:
    """All actions, each as early as its process and its inputs allow."""
    queues = {process: list(actions) for process, actions in order.items()}
    done: dict[Action, float] = {}
    free = dict.fromkeys(queues, 0.0)
    spans: list[Span] = []
    while any(queues.values()):
        before = len(spans)
        for process, queue in queues.items():
            while queue and all(need in done for need in _needs(queue[0], len(times))):
                kind, stage, number = action = queue.pop(0)
                ready = [done[need] + _send_time(need, action, times) for need in _needs(action, len(times))]
                begin = max([free[process], *ready])
                end = free[process] = begin + times[stage].of(kind)
                done[action] = end
                if kind == "B":
                    done[("I", stage, number)] = end
                spans.append(Span(process, kind, stage, number, begin, end))
        assert len(spans) > before, "the schedule has a deadlock"
    return spans


def bubble_share(spans: list[Span]) -> float:
    """Share of the step in which the busiest process is idle."""
    end = max(span.end for span in spans)
    busy: dict[int, float] = {}
    for span in spans:
        busy[span.process] = busy.get(span.process, 0.0) + span.end - span.begin
    return 1 - max(busy.values()) / end


def _needs(action: Action, stages: int) -> list[Action]:
    kind, stage, number = action
    if kind == "F":
        return [("F", stage - 1, number)] if stage > 0 else []
    if kind == "W":
        return [("I", stage, number)]
    return [("F", stage, number)] + ([("I", stage + 1, number)] if stage < stages - 1 else [])


def _send_time(need: Action, action: Action, times: Mapping[int, StageTime]) -> float:
    """Seconds until an input arrives, if it comes from another stage."""
    return times[min(need[1], action[1])].send if need[1] != action[1] else 0.0
