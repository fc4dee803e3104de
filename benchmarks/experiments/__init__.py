"""One module or folder for each experiment: its jobs, its table, its command."""
