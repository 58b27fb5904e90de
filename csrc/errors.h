// How the extensions refuse an argument: std::invalid_argument, a ValueError in Python.
#pragma once

#include <sstream>
#include <stdexcept>

namespace fastnmf {

template <class... Parts> [[noreturn]] void refuse(const Parts &...parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::invalid_argument(message.str());
}

} // namespace fastnmf
