"""What makes an untouched OpenOOD know this package and run on this machine; nothing else imports OpenOOD."""
