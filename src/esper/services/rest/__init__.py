"""What every service over HTTP does alike: who may call, how much they may send, and how errors are told."""
