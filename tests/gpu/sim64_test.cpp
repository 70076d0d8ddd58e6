// The emulation with waves of 64.
#define GRETA_SIM_WAVE 64
#define GRETA_SIM_SUITE Sim64
#include "gpu/sim_cases.inl"
