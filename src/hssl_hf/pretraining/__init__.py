"""The pre-training loop and what it needs: initialization, schedule, diagnostics, replay, artifacts, estimate."""
