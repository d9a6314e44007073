"""The networks: U-Net and classifier of the method, the SPADE baseline, and distances between images."""
