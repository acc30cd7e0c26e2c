"""What every kind of training needs: Accelerate's engines, launch checks, signals, optimizer, schedules, checkpoints."""
