// A CUDA device that computes nothing, for builds of torch without CUDA: autograd asks for streams and devices, and
// tensors without values need no others. Replaces the hooks of torch in place, because torch keeps a reference to them.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <new>

namespace {

struct Hooks final : at::CUDAHooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return false; }
};
static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface), "the hooks of torch have room for these");

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  c10::Device getDevice() const noexcept override { return c10::Device(c10::DeviceType::CUDA, 0); }
  c10::Device exchangeDevice(c10::Device) const noexcept override { return getDevice(); }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, getDevice());
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(getDevice()); }
};

at::CUDAHooksInterface* hooks() {
  return const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
}

auto& guard_of_cuda() {
  return c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)];
}

}  // namespace

extern "C" void install() {
  static const Guard guard;
  new (hooks()) Hooks();
  guard_of_cuda().store(&guard);
}

extern "C" void uninstall() {
  guard_of_cuda().store(nullptr);
  new (hooks()) at::CUDAHooksInterface();
}
