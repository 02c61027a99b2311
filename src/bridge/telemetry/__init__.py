"""What a worker reports about itself: log lines, activities, OpenTelemetry spans."""
