"""What a run found, as numbers for machines (`report.json`) and as tables for people."""
