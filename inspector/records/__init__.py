"""What a run leaves behind, a file per subject: frozen records that go to JSON and back. Nothing here needs torch."""
