//! The five reference systems as small programs on the backbone
