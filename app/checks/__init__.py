"""What `python -m app doctor` looks at: a module a check, each with `check(subject)`, which yields findings."""
