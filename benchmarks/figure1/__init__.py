"""The paper's Figure 1 on this machine: PSNR against time, of every network on the same pair and backend."""
