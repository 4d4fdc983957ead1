"""What a pruned model can be exported to: one file per format, which is named after it."""
