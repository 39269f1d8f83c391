"""One model of a robust and an accurate one."""
