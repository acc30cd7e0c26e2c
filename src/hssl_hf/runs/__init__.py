"""What a run leaves on disk: its directory, manifest, log and HTML report."""
