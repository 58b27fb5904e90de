// A guard of CUDA devices, of which there is one: to make it current does nothing.
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

using c10::Device;
using c10::DeviceType;
using c10::Stream;

struct Guard : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
    Device exchangeDevice(Device) const override { return getDevice(); }
    Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
    Stream getStream(Device) const noexcept override {
        return Stream(Stream::DEFAULT, getDevice());
    }
    Stream exchangeStream(Stream) const noexcept override { return getStream(getDevice()); }
};

const Guard guard;

} // namespace

extern "C" void set_guard() {
    c10::impl::DeviceGuardImplRegistrar(DeviceType::CUDA, &guard);
}
