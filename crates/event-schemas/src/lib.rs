//! The shared events of the reference systems, tested against schemas/
