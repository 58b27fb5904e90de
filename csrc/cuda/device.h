// The CUDA device of a call: errors as exceptions, the current device, and checks of addresses.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "../errors.h"

namespace fastnmf {

inline void check(cudaError_t error, const std::string &what) {
    if (error == cudaSuccess) return;
    cudaGetLastError(); // so that the next call does not report it again
    throw std::runtime_error("CUDA, " + what + ": " + cudaGetErrorString(error) + " (" +
                             cudaGetErrorName(error) + ")");
}

inline int attribute(cudaDeviceAttr name) {
    int device, value;
    check(cudaGetDevice(&device), "current device");
    check(cudaDeviceGetAttribute(&value, name, device),
          "attribute " + std::to_string(int(name)) + " of device " + std::to_string(device));
    return value;
}

// makes the device current, and the one before again at the end of the scope
class OnDevice {
  public:
    explicit OnDevice(int device) : device(device) {
        check(cudaGetDevice(&before), "current device");
        if (device != before) check(cudaSetDevice(device), "device " + std::to_string(device));
    }
    ~OnDevice() {
        if (device != before) cudaSetDevice(before);
    }
    OnDevice(const OnDevice &) = delete;

  private:
    const int device;
    int before;
};

inline void check_on_device(const char *name, const void *address, int device) {
    cudaPointerAttributes found;
    check(cudaPointerGetAttributes(&found, address), std::string("address of ") + name);
    const bool there = found.type == cudaMemoryTypeDevice && found.device == device;
    if (!there && found.type != cudaMemoryTypeManaged)
        refuse(name, " is not in the memory of CUDA device ", device);
}

} // namespace fastnmf
