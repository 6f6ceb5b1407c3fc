"""What lies in a checkpoint's folder, in both formats: its config and its towers'."""
