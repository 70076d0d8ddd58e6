# The GPU targets, included after greta_core: each is an object library that greta_core takes in, or a file of
# src/backend/gpu/none in its place. The kernels are src/backend/gpu/kernels/*.inl; a translation unit is a target's target.h and
# one of them, written into the build folder.
if(GRETA_TESTS AND NOT GRETA_SANITIZE)  # fibers confuse sanitizers
  set(sim_wanted ON)
else()
  set(sim_wanted OFF)
endif()
option(GRETA_CUDA "NVIDIA GPUs, sm_80 and sm_90a (nvcc 13)" OFF)
option(GRETA_HIP "AMD GPUs (clang 19, Debian's HIP)" OFF)
option(GRETA_SIM "the GPU kernels on the host, waves of 32 and 64, for tests (Boost.Context)" ${sim_wanted})
set(GRETA_CUDA_ARCHITECTURES 80 90a CACHE STRING "architectures of the CUDA kernels")
set(GRETA_HIP_ARCHITECTURES gfx942 gfx90a CACHE STRING "architectures of the HIP kernels")

set(GRETA_GPU ${CMAKE_SOURCE_DIR}/src/backend/gpu)
# The files of kernels that are translation units; what other files of kernels there are, these include.
set(GRETA_GPU_UNITS weights matmul matmul_own matmul_few matmul_many attention rows limits table)

# gpu_unit(OUT TARGET EXTENSION WAVE KERNELS): appends a target's translation unit of one file of kernels; WAVE is sim's, or "".
function(gpu_unit out target extension wave kernels)
  set(define "")
  if(wave)
    set(define "#define GRETA_SIM_WAVE ${wave}\n")
  endif()
  get_filename_component(unit ${kernels} NAME_WE)
  set(file ${CMAKE_BINARY_DIR}/generated/gpu/${target}${wave}_${unit}.${extension})
  file(CONFIGURE OUTPUT ${file} @ONLY CONTENT
    "${define}#include \"backend/gpu/${target}/target.h\"\n#include \"${kernels}\"\n")
  set(${out} ${${out}} ${file} PARENT_SCOPE)
endfunction()
# gpu_units(OUT TARGET EXTENSION WAVE [UNIT...]): the translation units of a target, its own UNITs among them.
function(gpu_units out target extension wave)
  set(files "")
  foreach(unit ${GRETA_GPU_UNITS} ${ARGN})
    gpu_unit(files ${target} ${extension} "${wave}" backend/gpu/kernels/${unit}.inl)
  endforeach()
  set(${out} ${files} PARENT_SCOPE)
endfunction()

# gpu_objects(NAME SOURCE...): an object library greta_NAME with the options of the rest.
function(gpu_objects name)
  add_library(greta_${name} OBJECT ${ARGN})
  target_include_directories(greta_${name} PRIVATE ${CMAKE_SOURCE_DIR}/src)
  target_link_libraries(greta_${name} PRIVATE ${fmt_library})
endfunction()
# gpu_target(NAME SOURCE...): one that is part of greta_core.
function(gpu_target name)
  gpu_objects(${name} ${ARGN})
  target_sources(greta_core PRIVATE $<TARGET_OBJECTS:greta_${name}>)
endfunction()
# gpu_test_kernels(NAME SOURCE...): one of kernels for tests alone, part of gpu_tests (tests/CMakeLists.txt).
function(gpu_test_kernels name)
  gpu_objects(${name}_test_kernels ${ARGN})
  target_include_directories(greta_${name}_test_kernels PRIVATE ${CMAKE_SOURCE_DIR}/tests)
endfunction()

# ---- CUDA
if(GRETA_CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    find_program(CMAKE_CUDA_COMPILER nvcc HINTS /usr/local/cuda/bin REQUIRED)
  endif()
  set(CMAKE_CUDA_HOST_COMPILER ${CMAKE_CXX_COMPILER})
  set(CMAKE_CUDA_ARCHITECTURES OFF)  # spelt out below: sm_90a is not among those that CMake 3.25 knows
  # CMake 3.25 does not know how nvcc 13 spells C++20, and must not be told to use it before it has tried the compiler.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${CMAKE_CXX_COMPILER_LAUNCHER})
  enable_language(CUDA)
  find_package(CUDAToolkit REQUIRED)

  gpu_units(cuda_units cuda cu "")
  list(TRANSFORM GRETA_CUDA_ARCHITECTURES REPLACE "(.+)" "-gencode=arch=compute_\\1,code=sm_\\1" OUTPUT_VARIABLE cuda_code)
  list(TRANSFORM GRETA_CUDA_ARCHITECTURES PREPEND "sm_" OUTPUT_VARIABLE cuda_architectures)
  list(JOIN cuda_architectures ", " cuda_architectures)
  set_source_files_properties(${cuda_units} PROPERTIES COMPILE_OPTIONS "${cuda_code}")
  # Hopper's own instructions: no other chip launches these kernels.
  gpu_units(hopper_units cuda cu "" matmul_warpgroup attention_warpgroup lab)
  list(REMOVE_ITEM hopper_units ${cuda_units})
  set_source_files_properties(${hopper_units} PROPERTIES COMPILE_OPTIONS "-gencode=arch=compute_90a,code=sm_90a")
  # nvcc takes other options than the directory's, which go to the host compiler behind it.
  function(cuda_options target)
    set_target_properties(${target} PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF)
    get_target_property(host_options ${target} COMPILE_OPTIONS)
    list(JOIN host_options "," behind_nvcc)
    set_target_properties(${target} PROPERTIES COMPILE_OPTIONS "")
    target_compile_options(${target} PRIVATE
      "$<$<COMPILE_LANGUAGE:CXX>:${host_options}>"
      "$<$<COMPILE_LANGUAGE:CUDA>:--fmad=false;-lineinfo;--compress-mode=size>"
      "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${behind_nvcc}>")
  endfunction()
  gpu_target(cuda ${GRETA_GPU}/cuda/cuda_device.cpp ${GRETA_GPU}/cuda/cuda_library.cpp ${cuda_units} ${hopper_units})
  cuda_options(greta_cuda)
  if(GRETA_TESTS)
    gpu_unit(cuda_test_unit cuda cu "" gpu/test_kernels.inl)
    set_source_files_properties(${cuda_test_unit} PROPERTIES COMPILE_OPTIONS "${cuda_code}")
    gpu_test_kernels(cuda ${cuda_test_unit})
    cuda_options(greta_cuda_test_kernels)
  endif()
  target_compile_definitions(greta_cuda PRIVATE GRETA_GPU_ARCHITECTURES="${cuda_architectures}")
  target_include_directories(greta_cuda SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})
  target_link_libraries(greta_core PUBLIC CUDA::cudart_static)
else()
  target_sources(greta_core PRIVATE ${GRETA_GPU}/none/cuda.cpp)
endif()

# ---- HIP: CMake's own HIP language does not configure with Debian's packages; clang compiles the kernels as C++ in commands
# of our own, the host compiler the rest.
if(GRETA_HIP)
  find_program(GRETA_HIP_COMPILER clang++-19 REQUIRED)
  find_program(GRETA_LLVM_AS llvm-as-19 REQUIRED)
  find_library(GRETA_AMDHIP amdhip64 REQUIRED)

  # Debian's device libraries (5.2) are older than gfx942: its number in the module that they ask for it.
  set(device_libraries ${CMAKE_BINARY_DIR}/generated/hip_device_libraries)
  file(MAKE_DIRECTORY ${device_libraries})
  file(GLOB bitcode /usr/lib/x86_64-linux-gnu/amdgcn/bitcode/*.bc)
  if(NOT bitcode)
    message(FATAL_ERROR "no HIP device libraries: install Debian's rocm-device-libs")
  endif()
  foreach(module ${bitcode})
    get_filename_component(name ${module} NAME)
    file(CREATE_LINK ${module} ${device_libraries}/${name} SYMBOLIC)
  endforeach()
  if(NOT EXISTS ${device_libraries}/oclc_isa_version_942.bc)
    execute_process(COMMAND ${GRETA_HIP_COMPILER} --target=amdgcn-amd-amdhsa -mcpu=gfx942 -nogpulib -x c -S -emit-llvm -o - /dev/null
                    OUTPUT_VARIABLE module COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCH "target datalayout = [^\n]+" layout "${module}")
    file(WRITE ${device_libraries}/isa_942.ll "${layout}\ntarget triple = \"amdgcn-amd-amdhsa\"\n"
      "@__oclc_ISA_version = linkonce_odr hidden local_unnamed_addr addrspace(4) constant i32 9402\n")
    execute_process(COMMAND ${GRETA_LLVM_AS} ${device_libraries}/isa_942.ll -o ${device_libraries}/oclc_isa_version_942.bc
                    COMMAND_ERROR_IS_FATAL ANY)
  endif()

  list(TRANSFORM GRETA_HIP_ARCHITECTURES PREPEND --offload-arch= OUTPUT_VARIABLE hip_flags)
  list(APPEND hip_flags -std=c++20 -O3 -ffp-contract=off -fno-math-errno -Wall -Wextra -Wshadow
       --rocm-path=/usr --rocm-device-lib-path=${device_libraries} -I${CMAKE_SOURCE_DIR}/src)
  if(GRETA_WERROR)
    list(APPEND hip_flags -Werror)
  endif()
  gpu_units(hip_units hip hip "")
  set(hip_objects "")
  foreach(unit ${hip_units})
    add_custom_command(OUTPUT ${unit}.o
      COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} ${GRETA_HIP_COMPILER} -x hip ${hip_flags} -MD -MF ${unit}.d -MT ${unit}.o -c ${unit} -o ${unit}.o
      DEPENDS ${unit} DEPFILE ${unit}.d VERBATIM)
    list(APPEND hip_objects ${unit}.o)
  endforeach()
  set_source_files_properties(${hip_objects} PROPERTIES EXTERNAL_OBJECT ON GENERATED ON)
  add_custom_target(greta_hip_kernels DEPENDS ${hip_objects})
  gpu_target(hip ${GRETA_GPU}/hip/hip_device.cpp)
  add_dependencies(greta_hip greta_hip_kernels)
  list(JOIN GRETA_HIP_ARCHITECTURES ", " hip_architectures)
  target_compile_definitions(greta_hip PRIVATE __HIP_PLATFORM_AMD__ GRETA_GPU_ARCHITECTURES="${hip_architectures}")
  target_sources(greta_core PRIVATE ${hip_objects})
  target_link_libraries(greta_core PUBLIC ${GRETA_AMDHIP})
else()
  target_sources(greta_core PRIVATE ${GRETA_GPU}/none/hip.cpp)
endif()

# ---- the kernels on the host
if(GRETA_SIM)
  set(Boost_USE_STATIC_LIBS ON)
  find_package(Boost REQUIRED COMPONENTS context)
  file(GLOB sim_sources CONFIGURE_DEPENDS ${GRETA_GPU}/sim/*.cpp)
  gpu_units(sim32_units sim cpp 32)
  gpu_units(sim64_units sim cpp 64)
  gpu_target(sim ${sim_sources} ${sim32_units} ${sim64_units})
  target_link_libraries(greta_sim PRIVATE Boost::context)
  if(GRETA_TESTS)
    gpu_unit(sim_test_units sim cpp 32 gpu/test_kernels.inl)
    gpu_unit(sim_test_units sim cpp 64 gpu/test_kernels.inl)
    gpu_test_kernels(sim ${sim_test_units})
  endif()
  target_link_libraries(greta_core PUBLIC Boost::context)
else()
  target_sources(greta_core PRIVATE ${GRETA_GPU}/none/sim.cpp)
endif()
