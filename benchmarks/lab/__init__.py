"""What runs experiments: jobs, their journal, the machine, options."""
