"""All targets by name."""

from tests.fuzz.answers_of_servers import SERVERS
from tests.fuzz.checkpoints import CHECKPOINTS
from tests.fuzz.plans import PLANS
from tests.fuzz.row_files import ROW_FILES
from tests.fuzz.runs import RUNS
from tests.fuzz.task_rows import TASK_ROWS
from tests.fuzz.texts import TEXTS

TARGETS = {target.name: target for target in (*CHECKPOINTS, *TEXTS, *ROW_FILES, *RUNS, *TASK_ROWS, *PLANS, *SERVERS)}

if __name__ == "__main__":
    print(*TARGETS)
