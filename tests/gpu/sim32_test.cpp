// The emulation with waves of 32.
#define GRETA_SIM_WAVE 32
#define GRETA_SIM_SUITE Sim32
#include "gpu/sim_cases.inl"
