"""What makes an untouched OpenOOD know this package and run on this machine; nothing else knows that OpenOOD exists."""
