"""What every driver of a protocol must do, as test classes that a driver's own tests inherit."""
