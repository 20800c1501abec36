"""What the user asked for: options, resource files with BPS's keys, and what they mean for each task."""
