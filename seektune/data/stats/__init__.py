"""Statistics of datasets: lengths, tools, scripts, duplicates, and what a row length cuts."""
