"""Exit codes of the command line, of workers and of launchers."""

DONE = 0
FAILURE = 1
USER_MISTAKE = 2
"""Invalid arguments, recipe or data."""
RESUME_ME = 75
"""The run stopped on request and continues when the same command is started again (EX_TEMPFAIL of sysexits.h)."""
BY_SIGNAL = 128
"""Plus the number of the signal that ended the process, as shells count."""
