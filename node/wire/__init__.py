"""Records and messages as bytes: generated protobuf code, and the codecs over it."""
