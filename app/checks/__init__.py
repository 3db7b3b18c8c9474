"""What `python -m app doctor` looks at: functions of a `Subject` that yield findings."""
