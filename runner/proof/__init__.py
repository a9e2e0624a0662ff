"""What was recorded, held against what is there: job=verify, job=replay, job=compare."""
