// A guard of CUDA devices that does nothing, for a torch that is built without CUDA.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {
const c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> guard;
}

extern "C" void set_guard() {
    c10::impl::DeviceGuardImplRegistrar(c10::DeviceType::CUDA, &guard);
}
