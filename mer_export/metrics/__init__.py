"""What a task is measured by: classes, label sets, sentiment scores, exactly as the papers compute them."""
